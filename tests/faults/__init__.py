"""Faults: what breaks, what is left, what is said. Some are tested beside what they break:

| fault | tests |
|---|---|
| out of map memory, the verifier refuses, a pin cannot be made | test_refused.py; deploy/test_emulated.py (a unit's MemoryMax=); bpf/test_lifecycle.py (a long log's end) |
| any one call of a live change fails | test_refused.py |
| an interface goes while it is attached or swapped | test_refused.py; bpf/test_daemon.py (it comes, goes, is renamed) |
| full disk: state directory, episodes, stdout | bpf/test_daemon.py, bpf/test_watching.py, unit/test_episodes.py, unit/test_stdout.py |
| a write of what is kept is cut off or refused at any call | test_kept_files.py |
| the wall clock is set, a suspend, a time namespace | test_clocks.py; unit/test_moments.py, unit/test_episodes.py, bpf/test_live_times.py (a reboot) |
| two versions on the same pins | test_versions.py; bpf/test_lifecycle.py (maps of a version with fewer) |
| pins that are missing, of another kind, rubbish | test_pins.py; bpf/test_daemon.py (bpffs unmounted, pins removed by hand) |
| interruption at each state-changing call | bpf/test_interruption.py (up, down, live changes), bpf/test_apply_interruption.py, bpf/test_daemon_interruption.py (start, reload, detaching at its end); that no call is left out: test_calls.py |
| another writer is at work | bpf/test_daemon.py, test_versions.py |
| a local user who is not root | test_local_user.py, test_hostile.py, test_hostile_scraper.py; bpf/test_exporter.py (a thousand slow clients), bpf/test_page.py (proxies), bpf/test_daemon.py (a port in use) |
"""

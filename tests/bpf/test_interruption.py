# strace counts each system call by itself: in one run over all of them, the rare ones are never hit
@pytest.mark.parametrize("call", ["flock", "mkdir", "rename", "unlink", "rmdir"])
@pytest.mark.parametrize("command", ["up", "down"])
def test_what_is_killed_at_a_rare_call_is_put_right(where: Path, command: str, call: str) -> None:
    for when in range(1, 20):
        if command == "down":
            up(where)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
        strace = ["strace", "-qq", "-o", "/dev/null", *inject]
        done = subprocess.run([*strace, sys.executable, "-c", ACT, command, NAMES[0]])
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0
            return
        if when % 2:
            up(where)
            assert guarded() == [NAMES[0]]
        with contextlib.suppress(NotRunning):
            lifecycle.down(None, bpffs=where)
        assert (guarded(), left(where)) == ([], [])
    raise AssertionError(f"{command} makes more calls of {call} than were tried")

"""What the operator of a soak types, and the policy files that they write."""

POLICIES = (
    'interfaces = ["eth0"]\nmode = "enforce"\n[sources]\ncapacity = 65536\n',
    'interfaces = ["eth0"]\nmode = "enforce"\n[sources]\ncapacity = 65536\n[limit]\nrate = "90/minute"\n'
    '[[class]]\nname = "polite"\nprefixes = ["203.0.113.0/24", "2001:db8:71::/48"]\n'
    '[[class]]\nname = "hasty"\nprefixes = ["198.18.1.0/24"]\nrate = "1/second"\nburst = 16\n'
    '[[signature]]\nname = "nixie"\nsource_port = 1337\naction = "block"\n',
)
BROKEN = 'interfaces = ["eth0"]\nmode = "enforced"\n[limit]\nrate = 3\n'
# what an operator types, and the exit codes that are no failure
COMMANDS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("status", (0, 1)),
    ("top -n 20", (0,)),
    ("top --by prefix", (0,)),
    ("top --sort requests", (0,)),
    ("kod", (0,)),
    ("episodes", (0,)),
    ("entries", (0,)),
    ("doctor", (0, 1)),
    ("policy diff", (0, 3)),  # the file is broken now and then
    ("policy describe", (0,)),
    ("show 198.18.1.7", (0,)),
    ("show 203.0.113.9", (0,)),
    ("limit list", (0,)),
    ("limit set --rate 120/minute --burst 64", (0,)),
    ("limit set --burst 40 --for 20s", (0,)),
    ("limit unset", (0,)),
    ("block 198.18.8.0/24 --for 5s --reason soak", (0,)),
    ("block 198.18.9.7", (0,)),
    ("exempt 198.18.9.8 --for 10s", (0,)),
    ("clear 198.18.9.7", (0, 2)),  # there is none
    ("mode observe --for 2s", (0,)),
    ("mode enforce", (0,)),
    ("policy apply A", (0,)),
    ("policy apply B", (0,)),
    ("up eth0 --policy A", (0,)),
)

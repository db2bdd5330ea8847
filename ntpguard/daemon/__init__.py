"""The daemon, `ntpguard run`: it attaches, follows interfaces and the policy file, and exports.

Packets do not need it: the guard lives in the kernel. It may die at any moment, and the next one
takes over what it finds.
"""

"""The operator's policy file: settings, checking, compiling. Knows no file descriptor."""

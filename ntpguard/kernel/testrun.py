"""A program run over packets that the caller makes, attached to nothing."""

import ctypes

from ntpguard.kernel.binding import TestRunOpts, check, library


class Runner:
    """Runs a program over one packet after the other: the buffers are made once, for half of the
    time would be theirs.

    A packet is put at `address`; what the program makes of it is not given back.
    """

    def __init__(self, program: int, most_bytes: int) -> None:
        self._program = program
        self._packet = ctypes.create_string_buffer(most_bytes)
        self.address = ctypes.addressof(self._packet)
        self._options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts), data_in=self.address, repeat=1)
        self._pointer = ctypes.pointer(self._options)
        self._call = library().bpf_prog_test_run_opts

    def run(self, size: int) -> int:
        """The return code for the first `size` bytes at `address`."""
        options = self._options
        options.data_size_in = size
        options.data_size_out = 0  # the run before has set it; less than this packet's is an error
        result = self._call(self._program, self._pointer)
        if result < 0:
            check(result, f"test run of {size} bytes")
        code: int = options.retval
        return code

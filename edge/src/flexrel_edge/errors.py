"""What can go wrong: the root of FlexRel's error tree, and the one error that reading has.

    FlexrelError            1   anything of ours; here: a tensor that can't be packed
    └── PackError           5   a file is damaged or not trusted

The numbers are exit codes of the command line. The package `flexrel` adds its own leaves.
"""


class FlexrelError(Exception):
    """Root of all errors of FlexRel. The message is one line."""

    exit_code = 1


class PackError(FlexrelError):
    """A file, or the bytes of one, is damaged or not trusted; nothing of it was used."""

    exit_code = 5

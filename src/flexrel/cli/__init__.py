"""The command `flexrel`: arguments in, one library call, text out.

Results go to stdout, everything else to stderr; an error is one line. Exit codes: 0 done and
met, 2 wrong usage, 3 the target or budget can't be met, 4 the model can't be analysed, 5 a file
is damaged or not trusted, 130 stopped by Ctrl-C.

A command imports what it needs when it runs: help and wrong usage are answered without torch.
"""

from flexrel.cli.app import main

__all__ = ["main"]

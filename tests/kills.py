"""A process that dies just before one of its calls of the system, as by SIGKILL."""

import os

CALLS = ("link", "replace", "unlink", "fsync", "chmod", "truncate")


def killed_before(number, work, calls=CALLS):
    """Do the work in a fork that ends before its call of this number, from 1; whether it did."""
    process = os.fork()
    if process == 0:
        left = number

        def counted(call):
            def before(*args, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return call(*args, **options)

            return before

        try:
            for name in calls:
                setattr(os, name, counted(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9

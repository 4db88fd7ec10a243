"""What the tests of `fm.study.ray_executor` have its workers do."""

import os
import pathlib
import signal


def write(folder, n):
    """Leaves a file behind."""
    pathlib.Path(folder, f"{n}.txt").write_text(str(n * n))


def write_or_die(folder, n):
    """The first attempt at an odd one kills its worker."""
    begun = pathlib.Path(folder, f"{n}.begun")
    if n % 2 and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, n)


def die(folder, n):
    """Every attempt does; each leaves a mark."""
    with pathlib.Path(folder, "attempts").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(folder, n):
    """Says what is wrong."""
    return f"{n} is not to be had"

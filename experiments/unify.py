"""The former name of experiments.multitask."""

import sys

if __name__ == "__main__":
    print("error: experiments.unify is now called experiments.multitask", file=sys.stderr)
    sys.exit(2)

"""`python3 -m ktap` is the ktap command."""

from ktap.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

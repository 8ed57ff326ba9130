"""`python3 -m ktap` is the ktap command."""

from ktap.cli import start

if __name__ == "__main__":
    start()

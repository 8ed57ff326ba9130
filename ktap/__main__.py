"""`python3 -m ktap` is the ktap command."""

from ktap.launch import start

if __name__ == "__main__":
    start()

"""`python -m neuroage` is the command line."""

from neuroage.cli.main import main

if __name__ == "__main__":
    main()

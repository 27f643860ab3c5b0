"""`python -m cli`, for where the `vmorch` command is not installed."""

from cli.main import main

main()

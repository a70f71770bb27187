"""`python -m landscape`, for torchrun and for environments without the script on their path."""

from landscape.cli import main

main()

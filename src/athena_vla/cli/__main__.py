"""`python -m athena_vla.cli`, where the command itself is not on the path."""

from athena_vla.cli import main

main()

"""The command line: one file per group of subcommands; parses arguments, asks, prints, and decides nothing."""

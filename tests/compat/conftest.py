"""Programs are run by a test, each in a process of its own; nothing imports them."""

collect_ignore = ["programs"]

"""Errors a user can act on: each message gives the rule, what arrived, whom it concerns and the remedy."""


class DataError(ValueError):
    """A case, datalist or setting breaks a rule of the data contract.

    Args:
        problems: one message, or all the problems found (reported together, one a line).

    Example:
        >>> print(DataError(["P001: mask is empty", "P002: label is missing"]))
        2 problems:
        - P001: mask is empty
        - P002: label is missing
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(self.problems[0] if len(self.problems) == 1 else f"{len(self.problems)} problems:\n{lines}")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the network it is loaded into."""

"""Trials on a real robot: an order drawn beforehand, hidden policies, an operator's verdicts, a report at the end."""

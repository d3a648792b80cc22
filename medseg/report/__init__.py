"""Predictions held against references: scores per case and organ, tables, a report in one file, runs compared."""

"""The phases: thin functions, 5 to 25 lines each, that build a value and act through ctx.host and ctx.api."""

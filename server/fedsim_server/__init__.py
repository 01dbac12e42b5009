"""The server app: requests sensitivities, plans bit depths, delivers models, collects error
counts."""

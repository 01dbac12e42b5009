"""What the server does: ask for sensitivities, plan bit depths, deliver models, gather error
counts."""

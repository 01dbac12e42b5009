"""What of a sensitivity summary may leave a device, and what that costs in privacy.

This room knows numpy and plain arrays: no model, no Flower, no scenario. Libraries for noise,
accounting and ciphers are imported where they are used.
"""

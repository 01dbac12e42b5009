"""The method: sensitivity, allocation, quantizers, calibration, packing, layer bank, model file.

It needs torch and numpy only, and never imports Flower, Ray or YAML, nor anything about a run.
"""

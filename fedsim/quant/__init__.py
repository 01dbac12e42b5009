"""The method: sensitivity, allocation, quantizers, calibration, packing, layer bank, model file.

This room knows torch and numpy. It never imports Flower, Ray, YAML or anything of a run.
"""

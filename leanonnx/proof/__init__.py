"""How a result differs: from the masked original (the proof), from the original on real inputs, from labels."""

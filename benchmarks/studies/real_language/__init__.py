"""A real language model, frozen, on text of five kinds: what are temperatures for each token worth, and in sampling?"""

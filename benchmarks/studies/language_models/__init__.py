"""A small GPT-2: what are temperatures for each token worth, frozen, from scratch and fine-tuned?"""

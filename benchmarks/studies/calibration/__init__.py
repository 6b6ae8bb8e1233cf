"""A frozen classifier: does a temperature for each image calibrate better than one constant?"""

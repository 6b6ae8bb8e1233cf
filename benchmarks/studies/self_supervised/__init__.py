"""Two views of each image without labels: which contrastive scheme learns the better features?"""

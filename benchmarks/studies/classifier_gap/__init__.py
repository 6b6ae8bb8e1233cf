"""How close do a classifier's predicted temperatures come to the optimal ones while both train?"""

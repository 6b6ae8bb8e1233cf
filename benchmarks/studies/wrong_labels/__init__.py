"""Training labels some of which are wrong: which loss learns in spite of them, and what identifies them?"""

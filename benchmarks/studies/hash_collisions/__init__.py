"""What do samples cost that share an entry of a table of moving averages?"""

"""Pairs from several sources, whose captions are wrong to different shares: when does a temperature or weight pay?"""

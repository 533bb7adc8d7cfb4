"""The demo model of sdengine: its pictures, its training, its checker and its evaluation."""

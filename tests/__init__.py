"""The tests of focusasr: their folders mirror those of the package; helpers/ holds what they share."""

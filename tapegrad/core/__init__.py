"""The engine: variable, primitive, tape, adjoints, schedule, capacitor, to be read in that order."""

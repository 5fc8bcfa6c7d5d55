"""SabotageBench: attacks, their benign twins and honest runs, against TrainWarden and two other defences."""

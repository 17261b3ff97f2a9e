"""Trial lists to error rates, with intervals, score normalisation and calibration."""

"""What the paper reports, of WRN-28-10 after 76 epochs of CIFAR-10, in percent where it is an accuracy."""

COLUMNS = ("natural", "fgsm", "pgd-20", "pgd-100", "mim-20", "cw-30", "feaattack", "A_rob")

ACCURACIES = {
    # Table 1
    "standard": (94.81, 12.05, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
    "at-fgsm": (93.80, 79.86, 0.12, 0.04, 0.06, 0.13, 0.01, 0.01),
    "at-pgd": (86.91, 58.30, 50.03, 49.40, 51.40, 50.23, 50.46, 48.26),
    "alp": (86.81, 56.83, 48.97, 48.60, 50.13, 49.10, 48.51, 47.90),
    "feascatter": (89.98, 77.40, 70.85, 68.81, 72.74, 58.46, 37.45, 37.40),
    "adt-exp": (86.89, 60.41, 52.18, 51.69, 53.27, 52.49, 52.38, 50.56),
    "adt-exp-am": (87.82, 62.42, 51.95, 51.26, 52.99, 51.75, 52.04, 50.04),
    "adt-imp-am": (88.00, 64.89, 52.28, 51.23, 52.64, 52.65, 51.89, 49.81),
    # Table 7
    "trades": (83.89, 59.79, 53.92, 53.68, 54.78, 52.71, 54.38, 51.67),
    "adt-exp-trades": (84.89, 60.23, 54.96, 54.56, 55.72, 52.96, 54.96, 52.13),
    "adt-exp-am-trades": (84.86, 60.43, 55.22, 55.00, 55.68, 52.30, 57.91, 51.77),
    "adt-imp-am-trades": (83.95, 65.61, 55.87, 54.79, 54.14, 52.82, 58.80, 51.81),
    # Table 8
    "l2l": (88.15, 65.50, 48.55, 47.14, 49.03, 49.22, None, None),
}
"""By method, in the order of :data:`COLUMNS`."""

STRENGTH = {
    "standard": (0.00, 0.00, 9.24, 9.83),
    "at-pgd": (50.03, 49.97, 50.46, 50.36),
    "adt-exp": (52.18, 51.96, 52.71, 52.82),
    "adt-exp-am": (51.95, 51.62, 52.85, 52.72),
    "adt-imp-am": (52.28, 51.46, 52.76, 52.48),
}
"""Table 4: under PGD-20, EXP, EXP-AM and IMP-AM."""

CURVATURE = {
    "standard": (1.8301, 6.3663),
    "at-pgd": (0.0242, 0.0478),
    "adt-exp": (0.0180, 0.0311),
    "adt-exp-am": (0.0181, 0.0270),
    "adt-imp-am": (0.0211, 0.0353),
}
"""Figure 4 (f): mean and standard deviation of the dominant eigenvalue of the Hessian of the loss, over images."""

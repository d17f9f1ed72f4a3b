"""The four vendors, played on loopback as their pages describe them, with faults on demand.

Independent of the service and the workers: it imports neither, so that it cannot share their mistakes.
"""

"""Ray around `crmt`: data sets, ingest, trials, sweeps, results and reports. Each file is a module and a command."""

#%Module1.0
# Modulefile for environment-modules. `make install` fills in the names between @ signs; a site may add the MPI that
# herd was built against, for example: prereq openmpi/4.1.4

proc ModulesHelp { } {
    puts stderr "herd @VERSION@ trains and runs Llama 3 on Slurm clusters."
    puts stderr "Batch scripts to start from are in @PREFIX@/share/herd/slurm, configurations in @PREFIX@/share/herd/configs."
}
module-whatis "herd @VERSION@: trains and runs Llama 3 on Slurm clusters"

conflict herd
setenv HERD_HOME @PREFIX@/share/herd
# For ranks started with srun by hand; herd launch sets it itself. See docs/cluster.md.
setenv SLURM_PMIX_FENCE ring
prepend-path PATH @PREFIX@/bin
# The empty entry at the end keeps the system's own pages.
prepend-path MANPATH @PREFIX@/share/man:

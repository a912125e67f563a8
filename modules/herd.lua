-- Modulefile for Lmod. `make install` fills in the names between @ signs; a site may add the MPI that herd was built
-- against, for example depends_on("openmpi/4.1.4").
help([[
herd @VERSION@ trains and runs Llama 3 on Slurm clusters.
Batch scripts to start from are in @PREFIX@/share/herd/slurm, configurations in @PREFIX@/share/herd/configs.
]])
whatis("Name: herd")
whatis("Version: @VERSION@")
whatis("Description: trains and runs Llama 3 on Slurm clusters")

conflict("herd")
setenv("HERD_HOME", "@PREFIX@/share/herd")
-- For ranks started with srun by hand; herd launch sets it itself. See docs/cluster.md.
setenv("SLURM_PMIX_FENCE", "ring")
prepend_path("PATH", "@PREFIX@/bin")
prepend_path("MANPATH", "@PREFIX@/share/man")
-- An empty entry keeps the system's own pages.
append_path("MANPATH", "")

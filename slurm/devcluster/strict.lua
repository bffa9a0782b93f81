-- The submit filter of the strict site: rules that sites have, by partition; root and the partition `lax` have none.
local refused = {
  account = "You are associated with multiple allocations. Please specify one of the following accounts to submit "
    .. "this job: proj, proj2. Use the parameter --account=desired_account when submitting your job",
  gpu = "Jobs in partition gpu have to ask for GPUs: --gpus, --gpus-per-node or --gres=gpu:N",
  interactive = "Interactive jobs are not allowed in this partition: use sbatch",
  array = "FAILED: job arrays are not available on this system",
  mem = "FAILED: --mem is not available on this system",
  gres = "FAILED: --gres is not available on this system",
}

local function rule_broken(job)
  local partition = job.partition
  local gpus = job.tres_per_node or job.tres_per_job or job.tres_per_task
  if job.account == nil then return "account" end
  if partition == "gpu" and gpus == nil then return "gpu" end
  if (partition == "batch" or partition == "plain") and job.script == nil then return "interactive" end
  if partition == "plain" and job.array_inx ~= nil then return "array" end
  if partition == "plain" and job.pn_min_memory ~= nil and job.pn_min_memory ~= slurm.NO_VAL64 then return "mem" end
  if partition == "plain" and gpus ~= nil then return "gres" end
  return nil
end

function slurm_job_submit(job, partitions, uid)
  if uid == 0 or job.partition == "lax" then return slurm.SUCCESS end
  local broken = rule_broken(job)
  if broken == nil then return slurm.SUCCESS end
  slurm.log_user(refused[broken])
  return broken == "account" and 2045 or slurm.ERROR
end

function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end

return slurm.SUCCESS

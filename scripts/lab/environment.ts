/** Settings of the lab and its tests, which the card would take for misspelt ones of its own. */
const OF_THE_LAB = /^VDUSE_NET_(CACHE|DEBIAN_MIRROR|LAB_\w+|TEST_\w+)$/

/** This process's environment for programs that it runs: without the lab's settings. */
export const environmentWithoutLab = (): Record<string, string> => {
  const environment: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && !OF_THE_LAB.test(name)) environment[name] = value
  }
  return environment
}

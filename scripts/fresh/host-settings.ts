/**
 * Copies this machine's access to package registries (proxies, certificates, files of apt and npm) into a bare root.
 */
import { chmodSync, chownSync, cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'

/** Settings of apt that concern access to a mirror: proxies, certificates, age of lists. */
const OF_THE_WAY = /^Acquire::(https?::.+|Check-\S+|Retries) "(.+)";$/

/** Environment variables that concern access to registries. */
const OF_THE_ENVIRONMENT =
  /^(https?_proxy|no_proxy|all_proxy|npm_config_(registry|cafile|\w*proxy)|NODE_EXTRA_CA_CERTS|SSL_CERT_(FILE|DIR))$/i

const CERTIFICATES = '/etc/ssl/certs/ca-certificates.crt'
const OWN_CERTIFICATES = '/usr/local/share/ca-certificates'

/** apt.conf(5) lines of this machine that concern access to a mirror. */
const aptSettings = (): string[] =>
  Bun.spawnSync(['apt-config', 'dump', 'Acquire'])
    .stdout.toString()
    .split('\n')
    .filter((line) => OF_THE_WAY.test(line))

/**
 * Environment variables of this process that concern access to registries. debootstrap also reads http_proxy, which may
 * be set for apt.
 */
export const networkEnvironment = (): Record<string, string> => {
  const environment: Record<string, string> = {}
  for (const line of aptSettings()) {
    const [, proxy] = /^Acquire::http::Proxy "(http.+)";$/i.exec(line) ?? []
    if (proxy !== undefined) environment.http_proxy = proxy
  }
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && OF_THE_ENVIRONMENT.test(name)) environment[name] = value
  }
  return environment
}

/** npm's settings of this machine and of this user. */
const npmSettings = (): string => {
  const global = Bun.spawnSync(['npm', 'config', 'get', 'globalconfig'], { stderr: 'ignore' }).stdout.toString().trim()
  return [global, join(homedir(), '.npmrc')]
    .filter((path) => path !== '' && existsSync(path))
    .map((path) => readFileSync(path, 'utf8').trimEnd())
    .join('\n')
}

/** Name resolution and apt: to be called before packages are installed in `root`. */
export const copyAptSettings = (root: string): void => {
  for (const path of ['/etc/resolv.conf', '/etc/hosts']) {
    if (existsSync(path)) writeFileSync(join(root, path), readFileSync(path))
  }
  writeFileSync(join(root, 'etc/apt/apt.conf.d/90machine'), `${aptSettings().join('\n')}\n`)
}

/** Certificates that this machine trusts: to be called once the package ca-certificates is there. */
export const copyCertificates = (root: string): void => {
  if (existsSync(CERTIFICATES)) writeFileSync(join(root, CERTIFICATES), readFileSync(CERTIFICATES))
  if (!existsSync(OWN_CERTIFICATES)) return
  for (const name of readdirSync(OWN_CERTIFICATES)) {
    cpSync(join(OWN_CERTIFICATES, name), join(root, OWN_CERTIFICATES, name), { recursive: true })
  }
}

/** npm's settings, for a user with the folder `home` below `root`. */
export const copyNpmSettings = (root: string, home: string, uid: number): void => {
  const settings = npmSettings()
  if (settings === '') return
  const path = join(root, home, '.npmrc')
  writeFileSync(path, `${settings}\n`)
  chmodSync(path, 0o600)
  chownSync(path, uid, uid)
}

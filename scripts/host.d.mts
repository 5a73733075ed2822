/** Something that this machine does not permit, and what to do about it. */
export type Refusal = { readonly why: string; readonly hint: string }

/** Is there an executable of this name on the PATH? */
export const hasProgram: (name: string) => boolean

/** Does this process run as root? */
export const isRoot: () => boolean

/**
 * The words in front of a command that make it root over network namespaces: none for root. Everybody else is root in a user namespace,
 * where the kernel permits that: over network namespaces that are made there, and over nothing else.
 */
export const asRoot: () => string[]

/**
 * Why this process cannot have network namespaces with TAPs in them, or null if it can. Or why programs cannot that it starts with the
 * words of `asRoot` in front.
 */
export const namespaceRefusal: (words?: readonly string[]) => Refusal | null

/** Why real vhost-user front-ends cannot be shown on this machine, or null if they can. */
export const frontendsRefusal: () => Refusal | null

// Where a peer puts its tasks, and how it is told where that is: --port N --redis-url URL.
import { parseArgs } from 'node:util'
import { Queue } from 'bullmq'

const { values } = parseArgs({ options: { port: { type: 'string' }, 'redis-url': { type: 'string' } } })
const at = new URL(values['redis-url'])

export const port = Number(values.port)
export const queue = new Queue('bench', { connection: { host: at.hostname, port: Number(at.port) } })
